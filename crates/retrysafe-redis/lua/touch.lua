-- The record and when its key expires, written once more for a WAIT that follows.
touch()
return found()
