"The first hour as a program: `python -m tour` does all that README and recipes tell a reader to do"
