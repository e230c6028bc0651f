"""``sensai bench scale``: the server's own time as sizes grow."""
