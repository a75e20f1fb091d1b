"""Images that occur twice: identical files, and images that look alike. Imports images, report and the candidates."""
