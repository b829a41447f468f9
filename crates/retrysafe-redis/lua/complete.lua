-- ARGV: the owner; fingerprint and payload as they are to be kept; the retention.
if is_held_by(ARGV[1]) then
  -- A lapsed lease that nobody took over is still the live attempt's (ST3).
  if state == 'P' then
    keep('\1D\2' .. string.sub(head, 4, 27) .. ARGV[2], ARGV[3])
    tell()
    return 1
  end
  -- ST4
  if state == 'D' then
    touch()
    return 1
  end
end
return found()
