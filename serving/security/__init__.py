"""Who may ask: certificates and tokens, read anew when their files change."""
