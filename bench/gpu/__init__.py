"""`python -m bench --gpu`: both TerraMinds on one GPU, in parts with a time limit each."""
