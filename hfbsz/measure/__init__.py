<<<<<<< HEAD
"""Measures: from Steps, evaluations and models to Readings."""
=======
"""What is measured on runs, and what of it can be believed."""
>>>>>>> main
