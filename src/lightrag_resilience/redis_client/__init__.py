"""Redis clients for one server, Sentinels or a cluster; the Lua scripts; errors as plain text."""
