-- The same without the payload.
return {head, redis.call('PTTL', key)}
