"""The service: OpenAI and TEI routes over the same Encoder, on Ray Serve."""
