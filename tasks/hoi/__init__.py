"""Human-object interaction: what a person does and what each object is for, on graphs of people and objects."""
