-- Put in front of every script: a record, as src/record.rs writes it.
--
--    1      version: 1
--    2      state: P in flight, G given up, D finished, R released
--    3      flags: 1 an earlier attempt vanished, 2 somebody owns it
--    4-11   fence
--   12-27   owner
--   28-35   lease, 36-43 retention (P and G only): milliseconds
--   then    the fingerprint with its length in one byte before it, and in D the payload
--
-- Numbers are big-endian. When the record ends is the key's own expiry, and how far its lease has run
-- is read from that: ST7, the only clock is this server's.
local key = KEYS[1]
local NOBODY = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- A finished record may be megabytes long: only what judges it is read up front.
local head = redis.call('GETRANGE', key, 0, 42)
local state = string.sub(head, 2, 2)

-- ST10: what another version wrote is left as it is. The caller reads it and says so. No record is
-- shorter than the longest head.
local known = #head == 43
  and string.byte(head, 1) == 1
  and string.find('PGDR', state, 1, true) ~= nil
  and string.byte(head, 3) < 4

local function found()
  return {redis.call('GET', key), redis.call('PTTL', key)}
end

local function is_held_by(owner)
  return known and string.byte(head, 3) >= 2 and string.sub(head, 12, 27) == owner
end

local function times()
  local lease, retention = struct.unpack('>I8I8', head, 28)
  return lease, retention
end

-- missing_deadline: a key that somebody took the expiry from is not one whose lease is over.
local function has_lapsed()
  local lease, retention = times()
  local left = redis.call('PTTL', key)
  return left >= 0 and math.max(lease, retention) - left > lease
end

-- With its length in front.
local function fingerprint()
  local at = (state == 'P' or state == 'G') and 43 or 27
  local part = redis.call('GETRANGE', key, at, at + 255)
  return string.sub(part, 1, 1 + string.byte(part, 1))
end

-- The milliseconds as they were sent: a number of Lua's would be written out again for the command.
local function keep(record, milliseconds)
  if milliseconds ~= '0' then
    redis.call('SET', key, record, 'PX', milliseconds)
  else
    redis.call('DEL', key)
  end
end

-- Writes the record as it is. On one connection WAIT waits for the writes before it, so a repeated
-- call has to write too, or WAIT would confirm what no replica has.
local function touch()
  local left = redis.call('PTTL', key)
  if left > 0 then
    redis.call('PEXPIRE', key, left)
  end
end

-- Wakes who waits. That the user may not publish must not fail what was done: they also poll.
local function tell()
  redis.pcall('SPUBLISH', key, '')
end
