-- ARGV: the owner; the lease from now, zero to give it up.
if is_held_by(ARGV[1]) then
  local lease = tonumber(ARGV[2])
  if state == 'P' then
    local kept, retention = times()
    if lease == 0 then
      redis.call('SETRANGE', key, 1, 'G')
      redis.call('PEXPIRE', key, retention)
      tell()
    else
      if lease ~= kept then
        redis.call('SETRANGE', key, 27, struct.pack('>I8', lease))
      end
      redis.call('PEXPIRE', key, math.max(lease, retention))
    end
    return 1
  end
  -- ST4
  if state == 'G' and lease == 0 then
    touch()
    return 1
  end
end
return found()
