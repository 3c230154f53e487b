"""The set of bundles that fits a device, and one page that compares them."""
