"""Images to predict: whatever a user names, in the form that validation has."""
