print("Version: 4.2")
