"""`jupyter gpushare demo`: three notebooks that share this machine, seen from outside."""
