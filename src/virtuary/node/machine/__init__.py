"""One machine of QEMU's: described from its documents, started in the jail, listened to."""
