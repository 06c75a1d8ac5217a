"""The processes of a group: members, leases, and who has which partition."""
