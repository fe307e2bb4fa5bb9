// Replaced as soon as the target has content.
