-- The record and when its key expires, read at one moment.
return found()
