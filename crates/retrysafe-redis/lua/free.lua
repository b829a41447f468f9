-- Frees the key in the name of nobody, for operators: whatever the last owner still sends is lost. The
-- counters stay for what is left of the retention.
local function free()
  local vanished = string.char(string.byte(head, 3) % 2)
  redis.call('SET', key, '\1R' .. vanished .. string.sub(head, 4, 11) .. NOBODY .. fingerprint(), 'KEEPTTL')
  tell()
  return 1
end
