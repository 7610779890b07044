"""What each page shows: functions from a workspace and an address's parameters to JSON-able data."""
