"""What happened, counted and recorded: metrics and the event log. Nothing here decides anything."""
