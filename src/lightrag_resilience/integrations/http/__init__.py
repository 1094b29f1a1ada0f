"""The common code of the httpx and httpx2 transports."""
