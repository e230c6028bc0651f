"""Reports what the server does: logs, metrics, statistics, and the settings of both."""
