"""Number formats: what a value of 8, 4 or 3 bits can be, and how a real number becomes one."""
