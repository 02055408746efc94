"""tensorgraph: write a model once, as a graph whose sizes may be symbols; everything else is read off that graph."""
