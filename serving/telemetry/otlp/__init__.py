"""OpenTelemetry: traces of requests and the metrics, sent to a collector over OTLP from a thread of their own."""
