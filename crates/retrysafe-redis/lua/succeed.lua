-- ST6: the attempt after a released, given up or lapsed one, against the exact record observed.
-- ARGV: the record observed; the record to be; how long to keep it.
--
-- A renewal of the same length changes only the key's expiry, so the lapse is judged here once more.
local now = found()
local over = known and (state == 'R' or state == 'G' or (state == 'P' and has_lapsed()))
if over and now[1] == ARGV[1] then
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
  return 1
end
return now
