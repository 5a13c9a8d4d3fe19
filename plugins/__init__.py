"""The built-in components. Each folder is one kind, each file one component written against the
public names of invem."""
