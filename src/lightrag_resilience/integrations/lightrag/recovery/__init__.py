"""What an outage or a kill has left is mended by itself."""
