"""The one table of leases and idempotency, made and looked at by people: ``perinvoke table``. No handler needs this."""
