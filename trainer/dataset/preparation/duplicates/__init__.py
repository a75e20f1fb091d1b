"""Images that occur twice: identical files, and images that look alike."""
