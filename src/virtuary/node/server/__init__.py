"""What every capability stands on: one server's world, its steps, its process, its documents."""
