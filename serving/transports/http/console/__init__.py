"""The console: a page that shows a model's workers, votes and latencies as they change, and the routes that feed it."""
