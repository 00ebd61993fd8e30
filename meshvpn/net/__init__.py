"""The shell: sockets, routes, the WebSocket client and the driver that feeds the pure machines."""
