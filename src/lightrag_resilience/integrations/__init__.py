"""Guards for other libraries. A module needs the extra of its name."""
