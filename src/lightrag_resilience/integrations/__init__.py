"""Where the guards meet other libraries. Each module needs the extra of its name."""
