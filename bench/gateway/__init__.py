"""The gateway beside its peers: one mock engine, one load generator, every gateway on one core. See bench/README.md."""
