"""The processes of a group: members, leases, and the owner of each partition."""
