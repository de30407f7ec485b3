"""What a virtual machine is made of: one file a device, or a family of them."""
