-- ARGV: the owner; how long the counters stay.
if is_held_by(ARGV[1]) then
  if state == 'P' then
    keep('\1R' .. string.sub(head, 3, 27) .. fingerprint(), ARGV[2])
    tell()
    return 1
  end
  -- ST4
  if state == 'R' then
    touch()
    return 1
  end
end
return found()
