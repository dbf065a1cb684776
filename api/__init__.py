"""HTTP service: a safeguarded training mix for any user data set."""
