"""Binary layouts as documents: who writes each field, who reads it, and with which ordering."""
