"""What takes longer to show than a test run may."""
