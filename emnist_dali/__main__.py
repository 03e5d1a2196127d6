from .cli import main

main(prog_name="emnist-dali")
