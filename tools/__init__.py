"""Development tools: nginx builds, bad candidates, the demo. Nothing here is installed."""
