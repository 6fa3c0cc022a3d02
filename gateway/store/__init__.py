"""Where webhooks, deliveries, links and claims live: SQLite (embedded) or Redis."""
