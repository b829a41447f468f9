-- Answers 1 applied, 0 not found, -1 refused.
if redis.call('EXISTS', key) == 0 then
  return 0
end
if not known then
  return found()
end
if state == 'R' then
  return 0
end
if state == 'P' and not has_lapsed() then
  return -1
end
return free()
