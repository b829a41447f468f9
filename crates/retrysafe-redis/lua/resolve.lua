-- ARGV: the attempt that was seen. If it happened, also: the payload; its retention.
-- Answers 1 applied, 0 not found, -1 refused.
if redis.call('EXISTS', key) == 0 then
  return 0
end
if not known then
  return found()
end
local unknown = state == 'G' or (state == 'P' and has_lapsed())
if not unknown or struct.unpack('>I8', head, 4) ~= tonumber(ARGV[1]) then
  return -1
end
if #ARGV == 1 then
  return free()
end
keep('\1D\0' .. string.sub(head, 4, 11) .. NOBODY .. fingerprint() .. ARGV[2], ARGV[3])
tell()
return 1
