"""The report: what every latent fires on and does, as a page of cards."""
