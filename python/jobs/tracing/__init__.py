"""Distributed tracing: W3C trace context taken in and passed on, and spans of jobs exported by OTLP."""
